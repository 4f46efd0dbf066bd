# The service accounts and their roles. Each role is granted on one bucket, repository, service or
# account, except those that builds need on the project. README.md has a table of all roles.

locals {
  # An account ID has at most 30 characters.
  account_prefix = trimsuffix(substr(var.function_name, 0, 17), "-")

  # One item for each secret of each function.
  secrets = merge([
    for folder, function in local.functions :
    { for secret in function.secrets : "${folder}:${secret}" => { folder = folder, secret = secret } }
  ]...)
}

resource "google_service_account" "function" {
  for_each = local.functions

  # The hash keeps two names apart that begin alike.
  account_id   = each.key == "cloud_function" ? "${local.account_prefix}-function" : "${trimsuffix(substr(each.value.name, 0, 23), "-")}-${substr(sha1(each.value.name), 0, 6)}"
  display_name = "Runs the cloud function ${each.value.name}"

  depends_on = [google_project_service.api]
}

resource "google_service_account" "orchestrator" {
  account_id   = "${local.account_prefix}-orchestrator"
  display_name = "Dagster, which calls ${var.function_name}"

  depends_on = [google_project_service.api]
}

resource "google_service_account" "build" {
  account_id   = "${local.account_prefix}-build"
  display_name = "Builds ${var.function_name}"

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "function_creates_messages" {
  for_each = local.functions

  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectCreator" # can neither read nor overwrite messages
  member = google_service_account.function[each.key].member
}

resource "google_storage_bucket_iam_member" "function_uses_lake" {
  for_each = local.functions

  bucket = google_storage_bucket.lake.name
  role   = "roles/storage.objectUser"
  member = google_service_account.function[each.key].member
}

resource "google_secret_manager_secret_iam_member" "function_reads_secret" {
  for_each = local.secrets

  secret_id = each.value.secret
  role      = "roles/secretmanager.secretAccessor"
  member    = google_service_account.function[each.value.folder].member

  depends_on = [google_project_service.api]
}

resource "google_storage_bucket_iam_member" "orchestrator_reads_messages" {
  bucket = google_storage_bucket.messages.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.orchestrator.member
}

# A second-generation function is a Cloud Run service, and Cloud Run checks who may call it.
resource "google_cloud_run_v2_service_iam_member" "orchestrator_calls_function" {
  for_each = local.functions

  name     = google_cloudfunctions2_function.function[each.key].name
  location = var.region
  role     = "roles/run.invoker"
  member   = google_service_account.orchestrator.member
}

resource "google_service_account_iam_member" "users_act_as_orchestrator" {
  for_each = var.orchestrator_users

  service_account_id = google_service_account.orchestrator.name
  role               = "roles/iam.serviceAccountTokenCreator"
  member             = each.key
}

resource "google_storage_bucket_iam_member" "build_reads_sources" {
  bucket = local.builds_bucket
  role   = "roles/storage.objectViewer"
  member = google_service_account.build.member

  depends_on = [google_storage_bucket.builds]
}

resource "google_artifact_registry_repository_iam_member" "build_writes_images" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.writer"
  member     = google_service_account.build.member
}

# On the project, because logs belong to the project. It cannot read logs.
resource "google_project_iam_member" "build_writes_logs" {
  count = var.build_logs ? 1 : 0

  project = var.project_id
  role    = "roles/logging.logWriter"
  member  = google_service_account.build.member
}

# Google's own accounts, which encrypt and decrypt with your key. `just bootstrap` makes sure that
# they exist. The function itself gets no key: Google would then build it from another bucket, whose
# name contains a hash of the key, and which the build account could not read.
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

# New accounts and roles take a minute or more to become effective everywhere, and a build that
# starts earlier fails. Terraform waits when it creates them, and not later.
resource "time_sleep" "grants" {
  create_duration = "90s"

  triggers = {
    functions = join(" ", keys(local.functions))
    secrets   = join(" ", keys(local.secrets))
  }

  depends_on = [
    google_artifact_registry_repository_iam_member.build_writes_images,
    google_kms_crypto_key_iam_member.agents_use_key,
    google_project_iam_member.build_writes_logs,
    google_secret_manager_secret_iam_member.function_reads_secret,
    google_storage_bucket_iam_member.build_reads_sources,
    google_storage_bucket_iam_member.function_creates_messages,
    google_storage_bucket_iam_member.function_uses_lake,
  ]
}
