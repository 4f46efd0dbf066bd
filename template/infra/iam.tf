# The service accounts of Dagster and of builds, and their roles. Other files have further accounts
# and roles. Each role is granted on one resource, such as a bucket, except those that builds need on
# the project. README.md has a table of all roles.

locals {
  # An account ID has at most 30 characters.
  account_prefix = trimsuffix(substr(local.name, 0, 17), "-")
}

resource "google_service_account" "orchestrator" {
  account_id   = "${local.account_prefix}-orchestrator"
  display_name = "Dagster, which calls ${local.name}"

  depends_on = [google_project_service.api]
}

resource "google_service_account" "build" {
  account_id   = "${local.account_prefix}-build"
  display_name = "Builds ${local.name}"

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "orchestrator_reads_messages" {
  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.orchestrator.member
}

resource "google_service_account_iam_member" "users_act_as_orchestrator" {
  for_each = var.orchestrator_users

  service_account_id = google_service_account.orchestrator.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.key
}

# On the project, because logs belong to the project. It cannot read logs.
resource "google_project_iam_member" "build_writes_logs" {
  count = var.build_logs ? 1 : 0

  project = var.project_id
  role    = "roles/logging.logWriter"
  member  = google_service_account.build.member
}

# Google's own accounts, which encrypt and decrypt with your key. `just bootstrap` makes sure that
# they exist.
data "google_storage_project_service_account" "storage" {
  count = var.kms_key == null ? 0 : 1
}

locals {
  key_users = var.kms_key == null ? {} : {
    storage           = data.google_storage_project_service_account.storage[0].email_address
    artifact_registry = "service-${data.google_project.project.number}@gcp-sa-artifactregistry.iam.gserviceaccount.com"
  }
}

resource "google_kms_crypto_key_iam_member" "agents_use_key" {
  for_each = local.key_users

  crypto_key_id = var.kms_key
  role          = "roles/cloudkms.cryptoKeyEncrypterDecrypter"
  member        = "serviceAccount:${each.value}"
}
