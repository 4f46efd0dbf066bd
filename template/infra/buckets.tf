# All buckets are private. Access is controlled by IAM only, without access control lists.

locals {
  location  = var.dual_region == null ? var.region : var.dual_region.location
  placement = var.dual_region == null ? [] : [[upper(var.region), upper(var.dual_region.second_region)]]
}

# The tasks' messages to Dagster, one object for each chunk.
resource "google_storage_bucket" "messages" {
  #checkov:skip=CKV_GCP_62:Access logs would be larger than the messages.
  #checkov:skip=CKV_GCP_78:Objects are written once and never overwritten.
  name                        = var.messages_bucket
  location                    = local.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # messages are temporary

  lifecycle_rule {
    action {
      type = "Delete"
    }
    condition {
      age = var.messages_days
    }
  }

  soft_delete_policy {
    retention_duration_seconds = 0 # do not keep, or pay for, deleted messages
  }

  dynamic "custom_placement_config" {
    for_each = local.placement
    content {
      data_locations = custom_placement_config.value
    }
  }

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agents_use_key]
}

# The tables. Terraform does not destroy this bucket unless it is empty.
resource "google_storage_bucket" "lake" {
  #checkov:skip=CKV_GCP_62:Turn on Data Access audit logs if you have to prove who read the data.
  #checkov:skip=CKV_GCP_78:Delta tables have their own versions, and soft delete keeps deleted objects.
  name                        = var.lake_bucket
  location                    = local.location
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  soft_delete_policy {
    retention_duration_seconds = 7 * 24 * 60 * 60
  }

  dynamic "custom_placement_config" {
    for_each = local.placement
    content {
      data_locations = custom_placement_config.value
    }
  }

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agents_use_key]
}

# The tasks' source code: the bundles, one object for each version, named after its hash.
resource "google_storage_bucket" "sources" {
  #checkov:skip=CKV_GCP_62:The audit log has all deployments.
  #checkov:skip=CKV_GCP_78:Objects are named after their content and never overwritten.
  name                        = var.sources_bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"
  force_destroy               = true # the bundles can be rebuilt from the repository

  dynamic "encryption" {
    for_each = var.kms_key[*]
    content {
      default_kms_key_name = encryption.value
    }
  }

  depends_on = [google_project_service.api, google_kms_crypto_key_iam_member.agents_use_key]
}
