# All buckets are closed to the public, and only IAM says who may do what in them.

# One object a chunk of messages, from the function to Dagster.
resource "google_storage_bucket" "messages" {
  #checkov:skip=CKV_GCP_62:Logs of access would outgrow the messages.
  #checkov:skip=CKV_GCP_78:An object is written once, and never replaced.
  name                        = var.messages_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # nothing in it is worth keeping

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = var.messages_days
    }
  }

  soft_delete_policy {
    retention_duration_seconds = 0 # what is deleted is gone, and no longer paid for
  }

  depends_on = [google_project_service.api]
}

# The tables. The bucket is not destroyed while there is anything in it.
resource "google_storage_bucket" "lake" {
  #checkov:skip=CKV_GCP_62:Turn on Data Access audit logs where access has to be proven.
  #checkov:skip=CKV_GCP_78:Delta tables keep their own versions; soft delete keeps what is deleted by mistake.
  name                        = var.lake_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  soft_delete_policy {
    retention_duration_seconds = 7 * 24 * 60 * 60
  }

  depends_on = [google_project_service.api]
}

# The function's sources, one object a version: build/function.zip, under the name of its hash.
resource "google_storage_bucket" "sources" {
  #checkov:skip=CKV_GCP_62:Who deploys is in the audit log of the function.
  #checkov:skip=CKV_GCP_78:An object is named for its content, and never replaced.
  name                        = var.sources_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # it can be made again from the repository

  depends_on = [google_project_service.api]
}

# Google copies the sources to a bucket of this name, and builds the function from there. It makes
# the bucket at the first deployment of a function in a project, but without letting the account
# that builds read it. To grant that, the bucket has to be here before.
resource "google_storage_bucket" "builds" {
  #checkov:skip=CKV_GCP_62:Google writes it, and the account that builds reads it.
  #checkov:skip=CKV_GCP_78:The sources have a bucket of their own.
  name                        = "gcf-v2-sources-${google_storage_bucket.sources.project_number}-${var.region}"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true
}
